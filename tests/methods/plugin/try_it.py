import lightning as L
import torch
import torch.nn.functional as F
from torch.nn import Linear
from torch.utils.data import DataLoader, TensorDataset

from kakurenbo_lightning import SampleSelection


class Classifier(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = Linear(4, 2)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.layer(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


if __name__ == "__main__":
    x = torch.randn(200, 4)
    data = TensorDataset(x, (x[:, 0] > 0).long())
    selection = SampleSelection("mean_loss", pool=0.5, unbiased=True)
    trainer = L.Trainer(max_epochs=3, accelerator="cpu", callbacks=[selection], logger=False, enable_checkpointing=False)
    trainer.fit(Classifier(), DataLoader(data, batch_size=20, shuffle=True))
    print(selection.totals.summary())
    print(f"{len(selection.plan.hidden)} samples hidden in the last epoch")
