"""Adversarial Hierarchical Distillation: from Mid's many guided steps to two or one per stage."""
