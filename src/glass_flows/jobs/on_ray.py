"""Batches on a Ray cluster: an actor per GPU holds the model, an item is a task.

Ray begins an actor that died again, and with it the item that it was at; that goes on from its
folder, which every node must see under the same name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import InvalidArgument, MissingExtra, RunFolderError
from .items import Item, Over, Work, Worker


def run_with_ray(
    work: Work, items: Sequence[Item], out: Path, workers: int, address: str
) -> Iterator[Over]:
    """Every item, when it is over.

    Parameters
    ----------
    workers : int
        Actors, on a cluster without GPUs; where there are any, each has an actor.
    address : str
        "local" starts a cluster on this machine and stops it afterwards; else as `ray.init` takes
        it: "auto", "ray://HOST:PORT".

    Raises
    ------
    MissingExtra
        Ray is not installed.
    InvalidArgument
        There is no cluster at this address.
    RunFolderError
        The folder cannot be written.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # else a token in the home directory
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        from ray.exceptions import RayTaskError
        from ray.util import ActorPool
    except ImportError as error:
        raise MissingExtra("ray", "ray", "a batch on a cluster") from error
    started = not ray.is_initialized()
    if started:
        local = {"num_cpus": workers, "include_dashboard": False} if address == "local" else {}
        try:
            ray.init(address=address, log_to_driver=False, logging_level="warning", **local)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InvalidArgument(
                f"no Ray cluster at {address!r}: {error}. Give 'local', 'auto' or ray://HOST:PORT"
            ) from error
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        kind = ray.remote(
            num_cpus=1, num_gpus=1 if gpus else 0, max_restarts=-1, max_task_retries=-1
        )(Worker)
        count = min(len(items), gpus or workers)
        actors = [kind.remote(work) for _ in range(count)]
        pool = ActorPool(actors)
        place = out.resolve()
        yield from pool.map_unordered(lambda actor, item: actor.do.remote(item, place), items)
    except RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, RunFolderError) else error from None
    finally:
        if started:
            ray.shutdown()
