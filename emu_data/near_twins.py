"""Which pictures are the same one again: equal bytes, or near hashes and near thumbnails, through any chain.

All pairs of a corpus cannot be compared. Two hashes that differ in at most 3 of 64 bits agree in at least one of 4
bands of 16 bits, and, of the 48 bits left, in at least one of 4 bands of 12 (the pigeonhole twice: Manku, Jain and
Das Sarma, "Detecting near-duplicates for web crawling", 2007). So hashes are joined on 16 keys of 28 bits. With the 4
keys of 16 bits alone 1.1 billion hashes would have 4e13 candidates; with these they have 4e10.

Everything is done by DuckDB, which spills to disk; only the confirmed pairs are in memory. What is equal is collapsed
first, so that a picture that comes a million times is one row.
"""

import numpy as np
import pandas as pd
from duckdb import DuckDBPyConnection

NUM_BANDS = 4
MAX_DISTANCE = NUM_BANDS - 1  # bits; what the bands find without a miss

# Mean difference of two thumbnails (4 x 4 RGB), each divided by its own mean, so that brightness does not count. Copies
# of the demo's drawings and of photographs are below 0.014 (saved as JPEG, darkened, rescaled); chosen here.
MAX_COLOUR_DIFFERENCE = 0.02
MAX_BRIGHTNESS_RATIO = 1.5  # of the means; a white page and a black one are two pictures; chosen here
# Pictures of one hash that are compared: each with so many that follow in the order of their thumbnails. It bounds
# the work for a hash with millions of different pictures (blank pages, one-colour cards); chosen here.
WINDOW = 64
BATCH = 500_000  # candidate pairs that are confirmed at a time


def cluster_near_twins(con: DuckDBPyConnection, source: str, max_distance: int = MAX_DISTANCE) -> None:
    """Create the table `clusters` (key, cluster): every row of `source` that has a twin, under its smallest twin's key.

    Args:
        source: a table or view with key, digest, phash (16 hexadecimal digits), thumbnail (96); rows without a hash
            are left out. The result does not depend on the order of its rows.
        max_distance: bits (0..3) by which hashes may differ.
    """
    con.execute(f"""
        CREATE OR REPLACE TEMP TABLE twin_rows AS
        SELECT key, md5_number(digest) AS digest, ('0x' || phash)::UBIGINT AS phash, unhex(thumbnail) AS thumbnail
        FROM {source} WHERE phash IS NOT NULL
    """)
    con.execute("""
        CREATE OR REPLACE TEMP TABLE looks AS
        SELECT phash, thumbnail, row_number() OVER (ORDER BY phash, thumbnail) AS look,
            row_number() OVER (PARTITION BY phash ORDER BY thumbnail) AS place
        FROM (SELECT DISTINCT phash, thumbnail FROM twin_rows)
    """)
    con.execute("""
        CREATE OR REPLACE TEMP TABLE look_of AS
        SELECT key, digest, look FROM twin_rows JOIN looks USING (phash, thumbnail)
    """)
    _join_near_hashes(con, max_distance)
    first, second = _confirmed_pairs(con)
    _create_groups(con, first, second)
    con.execute("""
        CREATE OR REPLACE TEMP TABLE clusters AS
        WITH member AS (
            SELECT key, coalesce(g.root, l.look) AS root FROM look_of l LEFT JOIN look_groups g USING (look)
        ),
        several AS (SELECT root, min(key) AS cluster FROM member GROUP BY root HAVING count(*) > 1)
        SELECT key, cluster FROM member JOIN several USING (root)
    """)
    for table in ("twin_rows", "looks", "look_of", "near_hashes", "look_groups"):
        con.execute(f"DROP TABLE {table}")


def near_duplicate_groups(pictures: pd.DataFrame, max_distance: int = MAX_DISTANCE) -> pd.Series:
    """Return a group name for each row (columns sha256, phash, thumbnail): equal for twins, through any chain.

    For folds: pictures of one group must not be on both sides. The name is the smallest digest of the group.
    """
    import duckdb

    rows = pictures.reset_index(drop=True).rename(columns={"sha256": "digest"}).astype({"digest": "string"})
    rows["key"] = [f"{i:012d}" for i in rows.index]
    with duckdb.connect() as con:
        con.register("pictures", rows[["key", "digest", "phash", "thumbnail"]])
        cluster_near_twins(con, "pictures", max_distance)
        found = con.execute("SELECT key, cluster FROM clusters").df()
    cluster = rows["key"].map(dict(zip(found["key"], found["cluster"], strict=True))).fillna(rows["key"])
    return rows.groupby(cluster)["digest"].transform("min").set_axis(pictures.index).astype("string")


def _join_near_hashes(con: DuckDBPyConnection, max_distance: int) -> None:
    """Create `near_hashes` (a, b): each distinct pair of hashes within `max_distance` bits, and every hash with itself
    if more than one look has it.
    """
    con.execute("CREATE OR REPLACE TEMP TABLE hashes AS SELECT DISTINCT phash FROM looks")
    con.execute("""
        CREATE OR REPLACE TEMP TABLE near_hashes AS
        SELECT phash AS a, phash AS b FROM looks GROUP BY phash HAVING count(*) > 1
    """)
    con.execute("CREATE OR REPLACE TEMP TABLE found_hashes (a UBIGINT, b UBIGINT)")
    for band in range(NUM_BANDS if max_distance else 0):
        high = "0::UBIGINT" if band == NUM_BANDS - 1 else f"((phash >> {16 * (band + 1)}) << {16 * band})"
        rest = f"({high} | (phash & {(1 << 16 * band) - 1}::UBIGINT))"
        for part in range(NUM_BANDS):
            # 16 and 12 bits as one number: hash joins take one key faster than two.
            key = f"((((phash >> {16 * band}) & 65535) << 12) | (({rest} >> {12 * part}) & 4095))"
            con.execute(f"""
                INSERT INTO found_hashes
                WITH keyed AS (SELECT phash, {key}::UINTEGER AS k FROM hashes)
                SELECT x.phash, y.phash FROM keyed x JOIN keyed y ON x.k = y.k AND x.phash < y.phash
                WHERE bit_count(xor(x.phash, y.phash)) <= {max_distance}
            """)
    con.execute("INSERT INTO near_hashes SELECT DISTINCT a, b FROM found_hashes")
    con.execute("DROP TABLE hashes; DROP TABLE found_hashes")


def _confirmed_pairs(con: DuckDBPyConnection) -> tuple[np.ndarray, np.ndarray]:
    """Return the looks (two arrays) that are one picture: those with near hashes and thumbnails, or of equal bytes."""
    candidates = con.sql(f"""
        SELECT x.look AS first, y.look AS second, x.thumbnail AS thumbnail_x, y.thumbnail AS thumbnail_y
        FROM near_hashes p JOIN looks x ON x.phash = p.a JOIN looks y ON y.phash = p.b
        WHERE abs(x.place - y.place) <= {WINDOW} AND (p.a <> p.b OR x.place < y.place)
    """).to_arrow_reader(BATCH)
    firsts, seconds = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for batch in candidates:
        near = _similar(_pixels(batch.column("thumbnail_x")), _pixels(batch.column("thumbnail_y")))
        firsts.append(batch.column("first").to_numpy(zero_copy_only=False)[near])
        seconds.append(batch.column("second").to_numpy(zero_copy_only=False)[near])
    # Equal bytes decode to equal looks, unless the digest is of the bytes that arrived and the shard's were re-encoded.
    same = con.execute("""
        WITH several AS (SELECT digest, min(look) AS first FROM look_of WHERE digest IS NOT NULL
            GROUP BY digest HAVING min(look) < max(look))
        SELECT DISTINCT first, look AS second FROM several JOIN look_of USING (digest) WHERE look > first
    """).fetchnumpy()
    firsts.append(np.asarray(same["first"], np.int64))
    seconds.append(np.asarray(same["second"], np.int64))
    return np.concatenate(firsts), np.concatenate(seconds)


def _create_groups(con: DuckDBPyConnection, first: np.ndarray, second: np.ndarray) -> None:
    """Create `look_groups` (look, root) of the connected components of the pairs; root is the smallest look."""
    import pyarrow as pa
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    looks, places = np.unique(np.concatenate([first, second]), return_inverse=True)
    pairs = places.reshape(2, -1)
    graph = coo_array((np.ones(len(first), bool), (pairs[0], pairs[1])), shape=(len(looks), len(looks)))
    labels = connected_components(graph, directed=False)[1] if len(looks) else np.empty(0, np.int64)
    _, smallest = np.unique(labels, return_index=True)  # looks are sorted, so the first of a component is its smallest
    con.register("found_groups", pa.table({"look": looks, "root": looks[smallest[labels]] if len(looks) else looks}))
    con.execute("CREATE OR REPLACE TEMP TABLE look_groups AS SELECT * FROM found_groups")
    con.unregister("found_groups")


def _pixels(column) -> np.ndarray:
    """Return a column of equally long blobs as float32 (N, bytes)."""
    blobs = column.to_pylist()
    return np.frombuffer(b"".join(blobs), np.uint8).reshape(len(blobs), -1).astype(np.float32)


def _similar(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether the thumbnails (N, 48) of each pair are of one picture."""
    mean_x, mean_y = x.mean(axis=1, keepdims=True) + 1, y.mean(axis=1, keepdims=True) + 1
    ratio = np.maximum(mean_x / mean_y, mean_y / mean_x)[:, 0]
    difference = np.abs((x + 1) / mean_x - (y + 1) / mean_y).mean(axis=1)
    return (difference <= MAX_COLOUR_DIFFERENCE) & (ratio <= MAX_BRIGHTNESS_RATIO)
