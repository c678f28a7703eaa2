"""What comes after training: evaluating, transcribing, reviewing."""
