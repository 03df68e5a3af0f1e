"""Try what the README says of the file as it ships, after a training: its programs, its changes.

And that uv installs what pip does.
"""

import re
import subprocess
import sys
from pathlib import Path

README = Path("README.md").read_text(encoding="utf-8")
SOURCE = Path("mnist_cnn.py").read_text(encoding="utf-8")
EDITED = Path("runs/edited/mnist_cnn.py")  # git ignores this folder
FLAGS = ["--epochs=1", "--log-interval=1000", "--validate", "--data-dir=data"]


def run(*words):
    subprocess.run([sys.executable, *words], check=True)


packages = re.search(r"# dependencies = \[(.*)\]", SOURCE)[1]
assert re.findall(r'"(.+?)"', packages) == Path("requirements.txt").read_text().split()
for program in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
    run("-c", program)
# What is to be deleted, with the rest of its line, or replaced.
edits = dict.fromkeys(re.findall(r"delete (?:the four )?`(.+?)`", README), "")
edits |= {old: new for new, old in re.findall(r"\| write `(.+?)` for `(.+?)`", README)}
assert len(edits) == 8, edits
EDITED.parent.mkdir(parents=True, exist_ok=True)
for old, new in edits.items():
    edited = re.sub(re.escape(old) + ("" if new else ".*"), new, SOURCE)
    assert edited != SOURCE, f"the README names what isn't in the file: {old}"
    EDITED.write_text(edited, encoding="utf-8")
    print(f"\n{old} -> {new}", flush=True)
    run(EDITED, *FLAGS)
