"""Gates: figures of a trained model on scenes that it was not trained on, with limits."""
