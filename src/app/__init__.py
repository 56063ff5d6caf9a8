"""Fine-tune a 7B language model on one 8 GB GPU: prepare, fit, evaluate, chat, export, serve."""

__version__ = "0.1.0"
