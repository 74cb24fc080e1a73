#!/usr/bin/env bash
# Inside Colab's own image: every chapter alone, in an empty folder, from its setup cell on. Needs the network, as Colab has it.
# The checkout is at the folder above this one's parent; it is read, never imported.
set -uo pipefail
book="$(cd "$(dirname "$0")/../.." && pwd)"
failed=0
cp -r "$book" /tmp/book && export PPO_BOOK_SOURCE=/tmp/book PPO_BOOK_STRICT=1  # this checkout, whose folder is read-only
freeze() { python3 -m pip list --format=freeze 2>/dev/null | grep -viE '^(ppo[-_]lib|vaderSentiment)=='; }
freeze > /tmp/before.txt
for chapter in "$book"/chapters/*.ipynb; do
  folder="$(mktemp -d)"
  cp "$chapter" "$folder"
  echo "== $(basename "$chapter")"
  (cd "$folder" && jupyter nbconvert --to notebook --execute --ExecutePreprocessor.timeout=1200 --output out.ipynb ./*.ipynb) || failed=1
  freeze > /tmp/after.txt
  diff /tmp/before.txt /tmp/after.txt || { echo "the setup cell changed a package"; failed=1; }
done
exit "$failed"
