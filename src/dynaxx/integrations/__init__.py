"""The monitor as a callback of training frameworks; each module needs its framework, and loads it when it is used."""
