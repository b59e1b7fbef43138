"""The jobs behind the commands: train, evaluate, score, refresh, merge, tune, compare.

Owns: which registry, run folder, encoder and baselines go into a job, and what it leaves behind. Ignores: arithmetic,
command lines.

    run = train(Recipe.read("recipes/like.yaml"), registry=Registry("registry"))
    registry.publish(run, alias="production")
"""
