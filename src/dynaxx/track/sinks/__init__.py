"""Where measurements go besides the run store: each sink is one small object.

    Monitor(model, probe, sinks=[JsonLines("run.jsonl"), Selected(MLflow(), but=["dynaxx/layer/*"])])

The libraries they write to are imported when a sink is made.
"""

from dynaxx.track.sinks.base import Record, Sink
from dynaxx.track.sinks.callback import Callback
from dynaxx.track.sinks.jsonl import JsonLines
from dynaxx.track.sinks.mlflow import MLflow
from dynaxx.track.sinks.selected import Selected
from dynaxx.track.sinks.tensorboard import TensorBoard
from dynaxx.track.sinks.wandb import WandB
from dynaxx.track.sinks.webhook import Webhook

__all__ = ["Callback", "JsonLines", "MLflow", "Record", "Selected", "Sink", "TensorBoard", "WandB", "Webhook"]
