#!/usr/bin/env python3
"""Compares where kvist finds models in a cache of Hugging Face downloads with where the huggingface_hub package does.

usage: hub_cache_test.py KVIST    (needs huggingface_hub; last run with 2.4.0)
"""

import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from huggingface_hub import scan_cache_dir, try_to_load_from_cache

KVIST = sys.argv[1]
MODEL = Path(__file__).parent.parent / "assets" / "model"
RNG = random.Random(1)


def doctor(env, *args):
    command = [KVIST, "doctor", "--json", "--no-measure", *args]
    return json.loads(subprocess.run(command, env=env, capture_output=True, text=True).stdout)


def fill(root):
    """Models with three commits each, in the layout that the package writes."""
    repos = {}
    for repo in ["Org/Small", "org-x/name.with_dots-1", "gpt2", "A/b"]:
        directory = root / ("models--" + repo.replace("/", "--"))
        commits = ["".join(RNG.choice("0123456789abcdef") for _ in range(40)) for _ in range(3)]
        (directory / "blobs").mkdir(parents=True)
        for commit in commits:
            (directory / "snapshots" / commit).mkdir(parents=True)
            for file in MODEL.iterdir():
                blob = f"{commit}-{file.name}"
                (directory / "blobs" / blob).symlink_to(file.resolve())
                (directory / "snapshots" / commit / file.name).symlink_to(f"../../blobs/{blob}")
        refs = {"main": commits[0], "v1.0": commits[1], "refs/pr/2": commits[2]}
        if repo == "gpt2":
            del refs["main"]
        for name, commit in refs.items():
            path = directory / "refs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(commit)
        repos[repo] = commits
    return repos


def revisions():
    compared = 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        repos = fill(root)
        env = {**os.environ, "HF_HUB_CACHE": name}
        assert not scan_cache_dir(root).warnings, "the package must take it for a cache"
        listed = {model["id"] for model in doctor(env)["hub"]["models"]}
        assert listed == {repo.repo_id for repo in scan_cache_dir(root).repos} == set(repos)
        for repo, commits in repos.items():
            for revision in [None, "main", "v1.0", "refs/pr/2", *commits, "nope", "v1"]:
                theirs = try_to_load_from_cache(repo, "config.json", cache_dir=root, revision=revision)
                theirs = str(Path(theirs).parent) if isinstance(theirs, str) else None
                model = doctor(env, repo if revision is None else f"{repo}@{revision}")["model"]
                assert (model and model["path"]) == theirs, (repo, revision, model, theirs)
                compared += 1
    return compared


def places():
    values = {
        "HF_HUB_CACHE": [None, "/h1", "~/h1", "$FOO/h1"],
        "HUGGINGFACE_HUB_CACHE": [None, "/h2"],
        "HF_HOME": [None, "/h3", "~/h3", "${FOO}/h3"],
        "XDG_CACHE_HOME": [None, "/x", "$FOO/x"],
    }
    script = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    compared = 0
    for chosen in itertools.product(*values.values()):
        env = {"PATH": os.environ["PATH"], "HOME": "/home/u", "FOO": "/foo"}
        env |= {name: value for name, value in zip(values, chosen) if value}
        theirs = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True).stdout.strip()
        ours = doctor(env)["hub"]["directory"]
        assert ours == theirs, (env, ours, theirs)
        compared += 1
    return compared


print(f"{revisions()} revisions and {places()} places agree")
