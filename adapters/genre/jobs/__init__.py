"""The jobs that people ask for, wired: train, evaluate, recommend, score.

Owns: which registry, run folder, encoder and baselines go into a job, and what it leaves behind. Ignores: arithmetic,
command lines.

    run = train(Recipe.read("recipes/like.yaml"), registry=Registry("registry"))
    registry.publish(run, alias="production")
"""

from genre.jobs.dry import DryRun, dry_run
from genre.jobs.encoders import check_leak, encoder_name
from genre.jobs.evaluating import Figures, evaluate, figures_of, low_layers, measure, restore
from genre.jobs.places import check_data, environment, load_base, open_data, open_log, write_text
from genre.jobs.refresh_recipe import RefreshOptions
from genre.jobs.refreshing import Refreshed, refresh
from genre.jobs.reliability import draw_reliability
from genre.jobs.run import Run, train
from genre.jobs.scoring import open_engine, read_requests, stream
from genre.jobs.several import train_together

__all__ = [
    "DryRun",
    "Figures",
    "RefreshOptions",
    "Refreshed",
    "Run",
    "check_leak",
    "draw_reliability",
    "dry_run",
    "encoder_name",
    "environment",
    "evaluate",
    "figures_of",
    "load_base",
    "low_layers",
    "measure",
    "check_data",
    "open_data",
    "open_engine",
    "open_log",
    "read_requests",
    "refresh",
    "restore",
    "stream",
    "train",
    "train_together",
    "write_text",
]
