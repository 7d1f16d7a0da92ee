"""datasketch's MinHash and MinHashLSH on a file of texts; run by the Python of its own environment (see `datasketch`).

    python datasketch_near.py TEXTS.json THRESHOLD FALSE_NEGATIVE_WEIGHT REPEATS

Prints one line of JSON: seconds of each repeat from texts to links, and the links (pairs of row numbers). Settings are
those its documentation recommends for speed: the affine32 permutations of version 2, one array update for each set
(`update_batch`), a fast 32-bit hash in place of SHA-1, permutations shared between sketches (`MinHash.bulk`).
Shingles are the same as ours: lower case, words and runs of punctuation, three in a row.
"""

import json
import re
import sys
import time

import xxhash
from datasketch import MinHash, MinHashLSH

WORD = re.compile(r"\w+|[^\w\s]+")
PERMUTATIONS = 128


def shingles(text: str) -> set[bytes]:
    """The set of one text."""
    words = WORD.findall(text.lower()) or [text]
    if len(words) < 3:
        return {" ".join(words).encode()}
    encoded = [word.encode() for word in words]
    return set(map(b" ".join, zip(encoded, encoded[1:], encoded[2:], strict=False)))


def links(texts: list[str], threshold: float, weight: float) -> list[tuple[int, int]]:
    """Each text with the earlier ones that the index names and whose estimated similarity reaches the threshold."""
    lsh = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=(1.0 - weight, weight))
    found, sketches = [], []
    sets = map(shingles, texts)
    for number, sketch in enumerate(
        MinHash.generator(sets, num_perm=PERMUTATIONS, hashfunc=xxhash.xxh32_intdigest, scheme="affine32")
    ):
        for other in lsh.query(sketch):
            if sketch.jaccard(sketches[other]) >= threshold:
                found.append((other, number))
        lsh.insert(number, sketch, check_duplication=False)
        sketches.append(sketch)
    return found


def main() -> None:
    """Command line."""
    with open(sys.argv[1]) as file:
        texts = json.load(file)
    threshold, weight, repeats = float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        found = links(texts, threshold, weight)
        seconds.append(time.perf_counter() - begin)
    print(json.dumps({"seconds": seconds, "links": found}))


if __name__ == "__main__":
    main()
