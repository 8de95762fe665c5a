"""`python -m glass_flows`, for launchers that start modules: torchrun -m glass_flows."""

from __future__ import annotations

from .cli import main

if __name__ == "__main__":
    main()
