"""Train a model: `python train.py configs/quickstart.yaml [--option value ...]`, or `accelerate launch train.py ...`.

What happens is told step by step in pianogen_hf/workflows/train.py.
"""

from pianogen_hf.commands.train import main

if __name__ == "__main__":
    raise SystemExit(main())
