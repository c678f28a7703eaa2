"""Which sets of a run are worth having their vision features computed once."""

import logging

from datasets import Dataset
from transformers import PreTrainedModel

from dsocr.data.training_sets import TrainingSets
from dsocr.features.tower import is_frozen


logger = logging.getLogger(__name__)


def choose_cached(
    sets: TrainingSets, model: PreTrainedModel, *, wanted: bool, augment: bool, train_again: bool
) -> list[Dataset]:
    """The sets that will be read more than once with the same features; empty when there is nothing to gain.

    Args:
        sets: Sets of the run.
        model: Native model or `PeftModel`, as it will be trained.
        wanted: `--cache_vision_features`.
        augment: Whether training images are varied anew in every epoch.
        train_again: Whether training sees its samples more than once.
    """
    if not wanted:
        return []
    if not is_frozen(model):
        logger.info("vision features are not kept: the vision tower is trained")
        return []
    chosen = list(sets.evaluated.values())
    if augment:
        logger.info("vision features of the training images are not kept: they are varied in every epoch")
    elif not train_again:
        logger.info("vision features of the training images are not kept: they are seen only once")
    else:
        chosen.append(sets.train)
    return chosen
