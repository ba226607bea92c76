"""Train a model: `python train.py configs/quickstart.yaml [--option value ...]`, or `accelerate launch train.py ...`.

What happens is told step by step in pianogen_hf/train.py.
"""

from pianogen_hf.train import main

if __name__ == "__main__":
    raise SystemExit(main())
