"""A Hugging Face transformer on texts of different lengths: `python -m recipes.examples.text_classification`. Nothing is downloaded."""

import lightning as L
import torch
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

from kakurenbo_lightning import SampleSelection

GOOD, BAD, OTHER = range(2, 12), range(12, 22), range(22, 100)  # words, as numbers


class Texts(torch.utils.data.Dataset):
    """Sentences with a few good or bad words among others."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(count) % 2
        self.texts = []
        for label in self.labels.tolist():
            words = torch.randint(
                OTHER[0], OTHER[-1] + 1, (int(torch.randint(6, 20, (), generator=generator)),), generator=generator
            )
            words[:3] = torch.randint(10, (3,), generator=generator) + (GOOD[0] if label else BAD[0])
            self.texts.append(words)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return {"input_ids": self.texts[index], "labels": self.labels[index]}


def collate(samples):
    """Pad the texts of a batch to the longest one."""
    ids = torch.nn.utils.rnn.pad_sequence([sample["input_ids"] for sample in samples], batch_first=True)
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "labels": torch.stack([sample["labels"] for sample in samples]),
    }


class Classifier(L.LightningModule):
    """Wraps the transformer. The model computes its loss itself; its criterion call is captured all the same."""

    def __init__(self) -> None:
        super().__init__()
        size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 100}
        self.model = BertForSequenceClassification(BertConfig(**size, num_labels=2))

    def training_step(self, batch, batch_idx):
        return self.model(**batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main() -> SampleSelection:
    """Train the transformer for four epochs and return the selection."""
    L.seed_everything(0)
    selection = SampleSelection("kakurenbo", max_fraction=0.4, tau=0.6)
    trainer = L.Trainer(
        max_epochs=4, accelerator="auto", devices=1, logger=False, enable_checkpointing=False, callbacks=[selection]
    )
    trainer.fit(Classifier(), DataLoader(Texts(256), batch_size=32, shuffle=True, collate_fn=collate))
    return selection


if __name__ == "__main__":
    main()
