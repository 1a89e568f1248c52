"""The command line. Verbs import torch when they run, never to say what they are."""
