"""Make music: `python generate.py --prompt my.mid --seconds 30 --output out.mid`.

What happens is told step by step in pianogen_hf/generate.py.
"""

from pianogen_hf.generate import main

if __name__ == "__main__":
    raise SystemExit(main())
