"""`kakurenbo-train scorer=small`: a network that scores in the model's place."""

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from kakurenbo_recipes.settings import made_method
from kakurenbo_recipes.train import fit, run, scorer_for
from recipe_runs import TINY

PROXY = [
    *TINY,
    "method=selective_backprop",
    "method.score=topk",
    "method.keep=0.5",
    "method.pool=false",
    "scorer=small",
    "record=none",
]


def trained(cfg):
    """One run; its steps are 2 epochs of batches of 8."""
    return fit(cfg, instantiate(cfg.data))


def test_a_proxy_scores_and_half_of_each_batch_is_trained(compose):
    made = trained(compose(*PROXY, "method.train_scorer_every=4", "trainer.enable_checkpointing=false"))
    assert (made.totals["samples_scored"], made.totals["samples_trained"]) == (96, 96 + 48)


def test_the_model_begins_and_goes_on_as_without_a_scorer(compose):
    """In a warm-up that trains everything the scorer changes nothing."""
    alike = [*PROXY, "method.warmup_epochs=2", "trainer.enable_checkpointing=false"]
    with_scorer, without = trained(compose(*alike, "method.train_scorer_every=4")), trained(compose(*alike, "scorer=none"))
    assert with_scorer.score == without.score


def test_its_width_is_a_setting_and_its_network_is_another(compose):
    cfg = compose(*PROXY, "scorer.width=6")
    scorer = scorer_for(cfg, num_classes=7)
    assert scorer.network[0][0].out_channels == 6 and scorer.network[-1].out_features == 7


def test_training_a_scorer_that_is_not_there_is_refused(compose):
    with pytest.raises(
        InstantiationException, match=r"train_scorer_every=4 is not allowed without a scorer, .* add scorer=\.\.\."
    ):
        made_method(compose(*PROXY, "scorer=none", "method.train_scorer_every=4").method)


def test_of_compared_methods_those_have_it_that_score_batches(compose):
    names = ["baseline", "selective_backprop"]
    results = run(compose(*PROXY, "trainer.max_epochs=1", "trainer.enable_checkpointing=false", f"compare=[{','.join(names)}]"))
    assert [each.method for each in results] == names
