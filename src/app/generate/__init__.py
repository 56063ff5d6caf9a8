"""The one text-generation engine that chat, evaluate and serve use."""
