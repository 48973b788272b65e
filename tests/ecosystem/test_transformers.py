"""transformers' models from a config, in a LightningModule that returns ``outputs.loss``."""

import lightning.pytorch as pl
import pytest
import torch
from foreign import BATCH, METHODS, Case, Training, check
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

SENTENCES, LENGTH, WORDS, CLASSES = 48, 12, 50, 3


class Module(pl.LightningModule):
    """Fifteen lines around any model that makes its own loss."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, batch, batch_idx):
        return self.model(**batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=5e-4)


def sentences(padded=False):
    """Rows of ``input_ids`` and ``attention_mask``, of 12 words, or of 4 to 12 of them."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(1, WORDS, (SENTENCES, LENGTH), generator=generator)
    lengths = torch.randint(4, LENGTH + 1, (SENTENCES, 1), generator=generator)
    mask = (torch.arange(LENGTH) < lengths) if padded else torch.ones_like(words, dtype=torch.bool)
    return words * mask, mask


def loader(words, mask, labels):
    rows = [
        {"input_ids": ids, "attention_mask": seen.long(), "labels": label}
        for ids, seen, label in zip(words, mask, labels, strict=True)
    ]
    return DataLoader(rows, batch_size=BATCH, shuffle=True)


def predicted(row):
    """How many words of a row the model is asked for."""
    return (row["labels"] != -100).sum()


def words_but_the_first(row):
    """The same, of a model that is asked for the next word."""
    return (row["labels"][1:] != -100).sum()


def gpt2(padded=False):
    words, mask = sentences(padded)
    config = GPT2Config(
        vocab_size=WORDS, n_positions=16, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    return Training(
        Module(GPT2LMHeadModel(config).train()), loader(words, mask, words.masked_fill(~mask, -100)), terms=words_but_the_first
    )


def bert_config():
    return BertConfig(
        vocab_size=WORDS,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
        num_labels=CLASSES,
    )


def bert_sentences():
    words, mask = sentences(padded=True)
    return Training(Module(BertForSequenceClassification(bert_config()).train()), loader(words, mask, words[:, 0] % CLASSES))


def bert_tokens():
    words, mask = sentences(padded=True)
    labels = (words % CLASSES).masked_fill(~mask, -100)
    return Training(Module(BertForTokenClassification(bert_config()).train()), loader(words, mask, labels), terms=predicted)


def bert_masked():
    words, mask = sentences()
    asked = torch.rand(words.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    asked[:, 0] = True
    labels = words.masked_fill(~asked, -100)
    return Training(
        Module(BertForMaskedLM(bert_config()).train()), loader(words.masked_fill(asked, 0), mask, labels), terms=predicted
    )


def t5():
    words, mask = sentences(padded=True)
    config = T5Config(
        vocab_size=WORDS, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0, decoder_start_token_id=0
    )
    return Training(
        Module(T5ForConditionalGeneration(config).train()), loader(words, mask, words.masked_fill(~mask, -100)), terms=predicted
    )


def mixture():
    """Its loss is cross-entropy plus a thousandth of a loss of the router, added in place: of all experts chosen, a mean over words."""
    words, mask = sentences()
    config = MixtralConfig(
        vocab_size=WORDS,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
        output_router_logits=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    return Training(Module(MixtralForCausalLM(config).train()), loader(words, mask, words))


PACKAGE = "transformers"
CASES = [
    Case("GPT-2, sentences of one length", PACKAGE, gpt2),
    Case("GPT-2, padded sentences", PACKAGE, lambda: gpt2(padded=True)),
    Case("BERT, classes of sentences", PACKAGE, bert_sentences),
    Case("BERT, classes of words", PACKAGE, bert_tokens),
    Case("BERT, masked words", PACKAGE, bert_masked),
    Case("T5, padded sentences", PACKAGE, t5),
    Case("Mixtral with the loss of its router", PACKAGE, mixture),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_transformers(case, method):
    check(case, method)
