"""Make music: `python generate.py --prompt my.mid --seconds 30 --output out.mid`.

What happens is told step by step in pianogen_hf/workflows/generate.py.
"""

from pianogen_hf.commands.generate import main

if __name__ == "__main__":
    raise SystemExit(main())
