"""Serves the planned model with DeepSpeed-MII until interrupted: settings.json beside this file is the plan, MODEL names other weights."""

import json
import os
import sys
import time
from pathlib import Path

import mii


def main():
    settings = json.loads((Path(__file__).resolve().parent / "settings.json").read_text(encoding="utf-8"))
    model = os.environ.get("MODEL") or settings["model"]
    if not model:
        print("set MODEL to a checkpoint of the planned model", file=sys.stderr)
        return 2
    client = mii.serve(model, **settings["serve"])
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        client.terminate_server()
    return 0


if __name__ == "__main__":
    sys.exit(main())
