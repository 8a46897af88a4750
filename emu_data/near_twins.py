"""Which pictures are the same one again: equal bytes, or looks that are alike (alike.py), each near to one centre.

All pairs of a corpus cannot be compared. Looks are stored under some keys and sought under others; a pair that shares
a key and most bits is a candidate, and is compared. A key that very many looks share (a template with a few words) is
no key: of these each look is compared with the next ones in the order of their bits alone, so that the work stays
linear. DuckDB does this and spills to disk; only the confirmed pairs are in memory. Of these the close looks are then
compared, each picture's nearest first, and for as long as most of them are twins: of a family of hundreds that differ
close by (cards, stars) each picture meets a few dozen, and one that was posted a hundred times meets them all.

A cluster is a star: a centre, and pictures that are twins of that centre. Chains (a is like b, b like c, …) are none:
through enough links every line drawing is like every other. The picture with the most twins is the first centre, then
the one with the most twins among those left. What is equal is collapsed first, so that a picture that comes a million
times is one row.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pyarrow as pa
from duckdb import DuckDBPyConnection

from emu_data.alike import HALVES, VIEWS, close_similarity, similarity, sought_keys, stored_keys, unpack, unpack_close

# See alike.similarity and close_similarity. Chosen on half of the pictures of benchmarks/twins.py (docs/log.md).
MIN_SIMILARITY, MIN_CLOSE_SIMILARITY = 0.75, 0.77
MAX_DISTANCE = 14  # of 63 bits, between candidates; beyond it few copies are found, and many others; chosen here
MAX_COMPARED = 3  # ways to lay one picture onto the other (looks, mirrored or not) that are tried; chosen here
CROWD = 256  # looks that share a key, above which it is no key; chosen here
WINDOW = 32  # looks of such a key that each is compared with; chosen here
NEAREST = 64  # pairs of a picture whose close looks are compared before it is asked whether to go on; chosen here
PICTURES, PAIRS, CLOSE_PAIRS = 5_000, 1_000, 64  # in memory at a time


def cluster_near_twins(con: DuckDBPyConnection, source: str, min_similarity: float = MIN_SIMILARITY) -> None:
    """Create the table `clusters` (key, cluster): every row of `source` that has a twin, under its centre's key.

    Args:
        source: a table or view with key, digest (64 hexadecimal digits or null), looks (base64, or null of a blank
            picture, which has no twins but those of equal bytes). The result does not depend on the order of its rows.
        min_similarity: 0..1, of the looks of a twin and its centre.
    """
    first, second = _twins(con, source, min_similarity)
    num_pictures = _count(con, "pictures_of")
    centres = _stars(first, second, num_pictures)
    con.register("found", pa.table({"id": np.arange(num_pictures), "centre": centres}))
    con.execute("""
        CREATE OR REPLACE TEMP TABLE clusters AS
        WITH member AS (SELECT key, centre FROM twin_rows JOIN pictures_of USING (picture) JOIN found USING (id)),
        several AS (SELECT centre FROM member GROUP BY centre HAVING count(*) > 1),
        named AS (SELECT id AS centre, min(key) AS cluster FROM twin_rows JOIN pictures_of USING (picture) GROUP BY id)
        SELECT key, cluster FROM member JOIN several USING (centre) JOIN named USING (centre)
    """)
    con.unregister("found")
    _drop(con)


def near_duplicate_groups(pictures: pd.DataFrame, min_similarity: float = MIN_SIMILARITY) -> pd.Series:
    """Return a group name for each row (columns sha256, looks): equal for twins, through any chain.

    For folds: pictures of one group must not be on both sides, so here chains count. The name is the smallest digest of
    the group.
    """
    import duckdb
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = pictures.reset_index(drop=True).rename(columns={"sha256": "digest"}).astype({"digest": "string"})
    rows["key"] = [f"{i:012d}" for i in rows.index]
    with duckdb.connect() as con:
        con.register("pictures", rows[["key", "digest", "looks"]].astype({"looks": "string"}))
        first, second = _twins(con, "pictures", min_similarity)
        found = con.execute("SELECT key, id FROM twin_rows JOIN pictures_of USING (picture) ORDER BY key").df()
    num = int(found["id"].max()) + 1 if len(found) else 0
    graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(num, num))
    labels = connected_components(graph, directed=False)[1] if num else np.empty(0, int)
    groups = pd.Series(labels[found["id"].to_numpy()], index=rows.index)
    return rows.groupby(groups)["digest"].transform("min").set_axis(pictures.index).astype("string")


def _twins(con: DuckDBPyConnection, source: str, min_similarity: float) -> tuple[np.ndarray, np.ndarray]:
    """Create `twin_rows` (key, picture) and `pictures_of` (picture, id, looks), ids from 0 in the order of looks and
    digests; return the ids of all twins (two arrays), each pair once, the smaller id first.
    """
    # A picture is what has the same looks; a blank one what has the same bytes.
    con.execute(f"""
        CREATE OR REPLACE TEMP TABLE twin_rows AS
        SELECT key, md5(coalesce('looks ' || looks, 'bytes ' || digest, 'row ' || key)) AS picture, digest,
            looks::VARCHAR AS looks FROM {source}
    """)
    con.execute("""
        CREATE OR REPLACE TEMP TABLE pictures_of AS
        SELECT picture, row_number() OVER (ORDER BY picture) - 1 AS id, looks
        FROM (SELECT picture, any_value(looks) AS looks FROM twin_rows GROUP BY picture)
    """)
    con.execute(
        "CREATE OR REPLACE TEMP TABLE stored (key UINTEGER, bits UBIGINT, id BIGINT, look UTINYINT, view UTINYINT)"
    )
    con.execute(
        "CREATE OR REPLACE TEMP TABLE sought "
        "(key UINTEGER, bits UBIGINT, id BIGINT, look UTINYINT, mirrored BOOLEAN, flipped BOOLEAN)"
    )
    for ids, blobs in _pages(con, "SELECT id, from_base64(looks) AS looks FROM pictures_of WHERE looks IS NOT NULL"):
        looks, owners = unpack(blobs)
        place = np.arange(len(owners)) - np.searchsorted(owners, owners)  # of a look in its picture
        rows, views, keys, bits = stored_keys(looks.grey)
        _insert(con, "stored", [keys, bits, ids[owners[rows]], place[rows], views])
        rows, mirrored, keys, bits, flipped = sought_keys(looks.grey)
        _insert(con, "sought", [keys, bits, ids[owners[rows]], place[rows], mirrored, flipped])
    _create_candidates(con)
    passed = _alike(con, min_similarity)
    pairs = [np.sort(passed[["s_id", "q_id"]].to_numpy().T, axis=0)[:, _same_up_close(con, passed)]]
    # Equal bytes have equal looks, unless the digest is of the bytes that arrived and the shard's were re-encoded.
    same = con.execute("""
        WITH several AS (SELECT digest, min(id) AS first FROM twin_rows JOIN pictures_of USING (picture)
            WHERE digest IS NOT NULL GROUP BY digest HAVING min(id) < max(id))
        SELECT DISTINCT first, id AS second FROM several JOIN twin_rows USING (digest) JOIN pictures_of USING (picture)
        WHERE id > first
    """).fetchnumpy()
    pairs.append(np.stack([np.asarray(same["first"], np.int64), np.asarray(same["second"], np.int64)]))
    found = np.unique(np.concatenate(pairs, axis=1), axis=1)
    return found[0], found[1]


def _create_candidates(con: DuckDBPyConnection) -> None:
    """Create `candidates` (number, stored and sought look): of each pair of pictures the nearest few."""
    near = f"bit_count(xor(s.bits, q.bits)) <= {MAX_DISTANCE} AND s.id <> q.id"
    columns = "s.id AS s_id, s.look AS s_look, s.view AS view, q.id AS q_id, q.look AS q_look, q.mirrored AS mirrored"
    distance = "bit_count(xor(s.bits, q.bits)) AS distance"
    con.execute(f"CREATE OR REPLACE TEMP TABLE crowds AS SELECT key FROM stored GROUP BY key HAVING count(*) > {CROWD}")
    # Neighbours in the order of their bits: blocks of a window, each block with itself and the next one.
    con.execute("""
        CREATE OR REPLACE TEMP TABLE crowded AS
        WITH looks AS (
            SELECT key, bits, id, look, view, false AS mirrored, true AS is_stored FROM stored
            UNION ALL SELECT key, bits, id, look, 0, mirrored, false FROM sought WHERE NOT flipped
        )
        SELECT looks.*, row_number() OVER (PARTITION BY key ORDER BY bits, id, look, view, mirrored, is_stored) AS place
        FROM looks SEMI JOIN crowds USING (key)
    """)
    con.execute(f"""
        CREATE OR REPLACE TEMP TABLE candidates AS
        WITH met AS (
            SELECT {columns}, {distance} FROM (FROM stored ANTI JOIN crowds USING (key)) s JOIN sought q USING (key)
            WHERE {near}
            UNION ALL
            SELECT {columns}, {distance} FROM (FROM crowded WHERE is_stored) s
            JOIN (SELECT *, place // {WINDOW} + unnest([-1, 0, 1]) AS block FROM crowded WHERE NOT is_stored) q
                ON s.key = q.key AND s.place // {WINDOW} = q.block
            WHERE {near}
        ),
        ways AS (
            SELECT * FROM met QUALIFY row_number() OVER (
                PARTITION BY s_id, s_look, q_id, q_look, mirrored ORDER BY distance, view) = 1
        ),
        nearest AS (
            SELECT * FROM ways QUALIFY row_number() OVER (PARTITION BY least(s_id, q_id), greatest(s_id, q_id)
                ORDER BY distance, s_id, s_look, q_look, mirrored) <= {MAX_COMPARED}
        )
        SELECT row_number() OVER (ORDER BY s_id, q_id, s_look, q_look, mirrored) - 1 AS id, * EXCLUDE distance
        FROM nearest
    """)


def _alike(con: DuckDBPyConnection, min_similarity: float) -> pd.DataFrame:
    """Return of each pair of pictures that has alike looks the candidate that is most alike: its ids, looks, whether
    the second is mirrored, their similarity, and where in the first the second is (left, right, upper, lower). In the
    order of the candidates.
    """
    boxes = np.array([*VIEWS, *[VIEWS[0]] * len(HALVES)])
    found = []
    for start in range(0, _count(con, "candidates"), PAIRS):
        rows = con.sql(
            f"""
            SELECT c.*, from_base64(s.looks) AS s_looks, from_base64(q.looks) AS q_looks FROM candidates c
            JOIN pictures_of s ON s.id = c.s_id JOIN pictures_of q ON q.id = c.q_id
            WHERE c.id >= {start} AND c.id < {start + PAIRS} ORDER BY c.id
            """
        ).to_arrow_table()
        columns = {n: rows[n].to_numpy() for n in ("s_id", "s_look", "q_id", "q_look", "mirrored", "view")}
        sides = []
        for side in ("s", "q"):
            looks, owners = unpack(rows[f"{side}_looks"].to_pylist())
            sides.append(looks.take(np.searchsorted(owners, np.arange(len(rows))) + columns[f"{side}_look"]))
        others = sides[1].mirrored_where(columns["mirrored"])
        alike, places = similarity(sides[0], others, boxes[columns.pop("view")])
        places = dict(zip(("left", "right", "upper", "lower"), places.T, strict=True))
        found.append(pd.DataFrame({**columns, "similarity": alike, **places})[alike >= min_similarity])
    if not found:
        return pd.DataFrame(columns=["s_id", "q_id"], dtype=np.int64)
    passed = pd.concat(found, ignore_index=True)
    both = np.sort(passed[["s_id", "q_id"]].to_numpy(), axis=1)
    best = passed["similarity"].groupby([both[:, 0], both[:, 1]]).idxmax()
    return passed.loc[np.sort(best.to_numpy())].reset_index(drop=True)


def _same_up_close(con: DuckDBPyConnection, passed: pd.DataFrame) -> np.ndarray:
    """Return which pairs (_alike) are the same picture by their close looks too, bool (N,); see the module.

    In the round r the pairs are due that are the r-th NEAREST of one of their pictures, of whose pairs in every earlier
    round at least half were twins. So at most NEAREST pairs a picture, and as many as are twins, are compared.
    """
    num = len(passed)
    is_same, is_compared = np.zeros(num, bool), np.zeros(num, bool)
    if not num:
        return is_same
    sides = passed["s_id"].to_numpy(), passed["q_id"].to_numpy()
    owners, pairs = np.concatenate(sides), np.tile(np.arange(num), 2)
    order = np.lexsort((pairs, -passed["similarity"].to_numpy()[pairs], owners))
    owners, pairs = owners[order], pairs[order]
    turn = (np.arange(2 * num) - np.searchsorted(owners, owners)) // NEAREST
    goes_on = np.ones(owners[-1] + 1, bool)
    for number in range(turn.max() + 1):
        here = (turn == number) & goes_on[owners]
        due = np.unique(pairs[here])
        due = due[~is_compared[due]]
        for start in range(0, len(due), CLOSE_PAIRS):
            part = due[start : start + CLOSE_PAIRS]
            is_same[part] = _compare_close(con, passed.loc[part])
        is_compared[due] = True
        counts = np.bincount(owners[here], minlength=len(goes_on))
        goes_on = 2 * np.bincount(owners[here], is_same[pairs[here]], len(goes_on)) >= np.maximum(counts, 1)
    return is_same


def _compare_close(con: DuckDBPyConnection, pairs: pd.DataFrame) -> np.ndarray:
    """Return which of a few pairs (_alike) are the same picture by their close looks, bool (N,)."""
    ids = ", ".join(str(one) for one in np.unique(pairs[["s_id", "q_id"]].to_numpy()))
    rows = con.sql(f"SELECT id, from_base64(looks) AS looks FROM pictures_of WHERE id IN ({ids})").fetchall()
    close = {number: unpack_close(blob) for number, blob in rows}
    first, second = (
        np.stack([close[number][look] for number, look in zip(pairs[f"{s}_id"], pairs[f"{s}_look"], strict=True)])
        for s in ("s", "q")
    )
    second = np.where(pairs["mirrored"].to_numpy(bool)[:, None, None], second[:, :, ::-1], second)
    return (
        close_similarity(first, second, pairs[["left", "right", "upper", "lower"]].to_numpy()) >= MIN_CLOSE_SIMILARITY
    )


def _stars(first: np.ndarray, second: np.ndarray, num: int) -> np.ndarray:
    """Return the centre of each of `num` pictures, itself where it has none; see the module."""
    centres = np.arange(num)
    both = np.concatenate([first, second]), np.concatenate([second, first])
    order = np.lexsort((both[1], both[0]))
    starts = np.searchsorted(both[0][order], np.arange(num + 1))
    neighbours, degrees = both[1][order], np.diff(starts)
    is_taken = np.zeros(num, bool)
    for picture in np.lexsort((np.arange(num), -degrees)):
        if not degrees[picture]:
            break
        if is_taken[picture]:
            continue
        its = neighbours[starts[picture] : starts[picture + 1]]
        its = its[~is_taken[its]]
        is_taken[its], is_taken[picture] = True, True
        centres[its] = picture
    return centres


def _pages(con: DuckDBPyConnection, query: str) -> Iterator[tuple[np.ndarray, list[bytes]]]:
    for start in range(0, _count(con, "pictures_of"), PICTURES):
        page = con.sql(
            f"SELECT * FROM ({query}) WHERE id >= {start} AND id < {start + PICTURES} ORDER BY id"
        ).to_arrow_table()
        if len(page):
            yield page["id"].to_numpy(), page["looks"].to_pylist()


def _insert(con: DuckDBPyConnection, table: str, columns: list[np.ndarray]) -> None:
    con.register("found_keys", pa.table(columns, names=[f"c{i}" for i in range(len(columns))]))
    con.execute(f"INSERT INTO {table} SELECT * FROM found_keys")
    con.unregister("found_keys")


def _count(con: DuckDBPyConnection, table: str) -> int:
    return int(con.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0])


def _drop(con: DuckDBPyConnection) -> None:
    for table in ("twin_rows", "pictures_of", "stored", "sought", "crowds", "crowded", "candidates"):
        con.execute(f"DROP TABLE {table}")
