"""Suggest next steps from a run's figures."""

from collections.abc import Sequence


# A curve still falls if its last fifth is lower than the fifth before it by this share.
STILL_FALLING = 0.03
# If held-out CER exceeds training CER by this factor, more data helps more than more steps.
OVERFITTED = 2.0
FEW_LINES = 200


def _falls(values: Sequence[float]) -> bool:
    fifth = len(values) // 5
    if fifth < 1:
        return False
    last, before = values[-fifth:], values[-2 * fifth : -fifth]
    return sum(last) / fifth < (1 - STILL_FALLING) * sum(before) / fifth


def suggest_next_steps(
    losses: Sequence[float],
    cers: Sequence[float],
    *,
    base: dict,
    adapter: dict,
    shuffled: dict,
    train_sample: dict | None,
    train_lines: int | None,
) -> list[str]:
    """Derive advice from the figures of a run.

    Args:
        losses: Training losses in order.
        cers: CERs of the evaluations in order.
        base: `TextMetrics` of the base model on the held-out lines, as a dictionary.
        adapter: The same for the trained model.
        shuffled: The same for the trained model with swapped images.
        train_sample: The same for the trained model on some of its training lines.
        train_lines: Number of training lines.

    Returns:
        One sentence per finding; a single one when nothing stands out.
    """
    found = []
    if shuffled["cer_low"] <= adapter["cer"]:
        found.append(
            "With another line's image the CER is hardly worse: the model does not read these images yet. Check image mode "
            "and data, and train longer, before believing any improvement."
        )
    if adapter["cer_low"] <= base["cer"] <= adapter["cer_high"]:
        found.append(
            "The base model's CER lies inside the adapter's interval: no improvement is shown on so few lines."
        )
    elif adapter["cer"] > base["cer"]:
        found.append("The adapter reads worse than the base model: lower --learning_rate, and look at the worst lines.")
    if _falls(losses) or (len(cers) >= 2 and cers[-1] <= min(cers) and cers[-1] < (1 - STILL_FALLING) * cers[-2]):
        found.append("The curve still falls: train longer (--num_train_epochs).")
    elif len(cers) >= 3 and min(cers) < 0.9 * cers[-1]:
        found.append("The CER was lower earlier: train shorter, or set --early_stopping_patience 3.")
    if train_sample and adapter["cer"] > OVERFITTED * max(train_sample["cer"], 0.01):
        found.append(
            f"Lines that were trained on are read at CER {train_sample['cer']:.3f}, held-out ones at "
            f"{adapter['cer']:.3f}: more lines will help more than more steps."
        )
    if adapter["looping"] > 0.01:
        found.append(
            f"{adapter['looping']:.1%} of the outputs end in a loop: keep the loop guard on, and check that no training "
            "text repeats itself."
        )
    if adapter["empty"] > 0.02:
        found.append(f"{adapter['empty']:.1%} of the outputs are empty: look for blank or cut lines in the data.")
    if adapter["n"] < FEW_LINES:
        width = adapter["cer_high"] - adapter["cer_low"]
        found.append(f"{adapter['n']} held-out lines leave an interval {width:.3f} wide; more of them would narrow it.")
    if train_lines is not None and train_lines < FEW_LINES:
        found.append(f"{train_lines} lines to train on are few; correct some more (recipes/transcribe.py --review).")
    return found or ["Nothing stands out. Look at the worst lines (recipes/evaluate.py)."]
