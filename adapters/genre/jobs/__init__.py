"""The jobs that people ask for, wired: train, evaluate, recommend, score, refresh, merge, tune.

Owns: which registry, run folder, encoder and baselines go into a job, and what it leaves behind. Ignores: arithmetic,
command lines.

    run = train(Recipe.read("recipes/like.yaml"), registry=Registry("registry"))
    registry.publish(run, alias="production")
"""
