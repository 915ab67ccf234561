"""What needs training, evaluation and pictures at once: fine-tuning; and the list of verbs."""
