"""The jobs that people ask for, wired: train, evaluate, recommend, score.

Owns: which registry, run folder, encoder and baselines go into a job, and what it leaves behind. Ignores: arithmetic,
command lines.

    run = train(Recipe.read("recipes/like.yaml"), registry=Registry("registry"))
    registry.publish(run, alias="production")
"""

from genre.jobs.dry import DryRun, dry_run
from genre.jobs.encoders import check_leak, encoder_name
from genre.jobs.evaluating import Figures, evaluate, figures_of, low_layers, measure, restore
from genre.jobs.places import check_data, environment, load_base, open_base, open_data, open_log, write_text
from genre.jobs.ray_runtime import need_ray, ray_here
from genre.jobs.ray_scoring import Plan, answers
from genre.jobs.refresh_recipe import RefreshOptions
from genre.jobs.refreshing import Refreshed, refresh
from genre.jobs.reliability import draw_reliability
from genre.jobs.request_file import CHUNK_ROWS, Line, RequestFile, chunks, read_row
from genre.jobs.results_file import Results
from genre.jobs.run import Run, train
from genre.jobs.scoring import Answers, Scorer, batched, exact_refs, look_ahead, open_engine, open_users, row_id, write_all
from genre.jobs.several import train_together

__all__ = [
    "DryRun",
    "CHUNK_ROWS",
    "Answers",
    "Figures",
    "Line",
    "Plan",
    "RefreshOptions",
    "Refreshed",
    "RequestFile",
    "Results",
    "Run",
    "Scorer",
    "answers",
    "batched",
    "check_leak",
    "draw_reliability",
    "dry_run",
    "chunks",
    "encoder_name",
    "environment",
    "evaluate",
    "exact_refs",
    "figures_of",
    "load_base",
    "look_ahead",
    "low_layers",
    "measure",
    "check_data",
    "need_ray",
    "open_base",
    "open_data",
    "open_engine",
    "open_log",
    "open_users",
    "ray_here",
    "read_row",
    "refresh",
    "restore",
    "row_id",
    "train",
    "train_together",
    "write_all",
    "write_text",
]
