"""The tables, as they came to be: each version of the store leads to the next."""

from __future__ import annotations

# Each entry leads from one version to the next; PRAGMA user_version says which is reached.
# Stores from before have `spans` WITHOUT ROWID, which wastes a third, and keep it: either will do.
MIGRATIONS = (
    """
    CREATE TABLE sightings (
        id INTEGER PRIMARY KEY,
        agent TEXT NOT NULL, session_id TEXT NOT NULL, turn_key TEXT, subagent_id TEXT,
        digest BLOB NOT NULL UNIQUE, time_ns INTEGER NOT NULL, body BLOB NOT NULL
    );
    CREATE INDEX sightings_of_session ON sightings (agent, session_id);
    CREATE TABLE calls (
        call_id TEXT PRIMARY KEY, agent TEXT, session_id TEXT,
        start_ns INTEGER NOT NULL, taken_ns INTEGER NOT NULL, body BLOB NOT NULL,
        trace_id TEXT, evidence TEXT, reason TEXT
    );
    CREATE INDEX calls_of_session ON calls (agent, session_id);
    CREATE INDEX calls_without_turn ON calls (taken_ns) WHERE trace_id IS NULL;
    CREATE TABLE turns (
        trace_id TEXT PRIMARY KEY,
        agent TEXT NOT NULL, session_id TEXT NOT NULL, turn_key TEXT NOT NULL,
        state TEXT NOT NULL, outcome TEXT, start_ns INTEGER NOT NULL, end_ns INTEGER,
        prompt TEXT, customer_id TEXT, told INTEGER NOT NULL DEFAULT 0,
        revision INTEGER NOT NULL
    );
    CREATE INDEX turns_by_revision ON turns (revision);
    CREATE INDEX turns_by_start ON turns (start_ns);
    CREATE INDEX turns_of_session ON turns (agent, session_id);
    CREATE TABLE spans (
        trace_id TEXT NOT NULL, span_id TEXT NOT NULL, position INTEGER NOT NULL,
        told INTEGER NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (trace_id, span_id)
    );
    CREATE TABLE outbox (
        id INTEGER PRIMARY KEY,
        sink TEXT NOT NULL, span_id TEXT NOT NULL, trace_id TEXT NOT NULL,
        resource BLOB NOT NULL, data BLOB NOT NULL,
        refused TEXT,
        UNIQUE (sink, trace_id, span_id)
    );
    CREATE INDEX outbox_due ON outbox (sink, refused, id);
    CREATE TABLE sinks (
        name TEXT PRIMARY KEY, due_ns INTEGER NOT NULL DEFAULT 0,
        sent INTEGER NOT NULL DEFAULT 0,
        last_success_ns INTEGER, last_error_ns INTEGER, last_error TEXT
    );
    CREATE TABLE cursors (
        path TEXT PRIMARY KEY, read_to INTEGER NOT NULL, inode INTEGER NOT NULL, memory BLOB NOT NULL
    );
    CREATE TABLE forgotten (trace_id TEXT PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE notes (text TEXT PRIMARY KEY, count INTEGER NOT NULL);
    CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
    INSERT INTO counters VALUES ('revision', 0);
    """,
    """
    CREATE TABLE unsettled_sessions (
        agent TEXT NOT NULL, session_id TEXT NOT NULL, PRIMARY KEY (agent, session_id)
    ) WITHOUT ROWID;
    INSERT INTO unsettled_sessions
        SELECT DISTINCT agent, session_id FROM sightings WHERE turn_key IS NOT NULL
        AND (agent, session_id, turn_key) NOT IN (SELECT agent, session_id, turn_key FROM turns)
        UNION SELECT agent, session_id FROM turns
        WHERE trace_id IN (SELECT trace_id FROM spans WHERE told = 0);
    ALTER TABLE outbox ADD COLUMN checksum INTEGER;
    INSERT INTO counters VALUES ('intake', 0);
    CREATE INDEX outbox_of_span ON outbox (sink, span_id);
    CREATE INDEX outbox_of_trace ON outbox (trace_id);
    CREATE INDEX calls_of_trace ON calls (trace_id);
    CREATE TABLE local_sessions (
        agent TEXT NOT NULL, session_id TEXT NOT NULL, until_ns INTEGER NOT NULL,
        PRIMARY KEY (agent, session_id)
    ) WITHOUT ROWID;
    """,
    # Not a column of its own: rows saved out of a damaged older store have none.
    """
    ALTER TABLE calls ADD COLUMN gateway TEXT GENERATED ALWAYS AS (
        CASE WHEN json_valid(CAST(body AS TEXT))
        THEN json_extract(CAST(body AS TEXT), '$.gateway') END
    ) VIRTUAL;
    CREATE INDEX calls_of_gateway ON calls (gateway, evidence, reason, trace_id);
    CREATE INDEX calls_of_scripts ON calls (reason, start_ns) WHERE evidence IS NULL;
    """,
    """
    CREATE INDEX sightings_of_turn ON sightings (agent, session_id, turn_key, subagent_id);
    DROP INDEX sightings_of_session;
    CREATE INDEX sightings_of_subagents ON sightings (agent, session_id)
        WHERE substr(body, 1, 11) = CAST('["Subagent"' AS BLOB);
    CREATE TABLE settled_turns (trace_id TEXT PRIMARY KEY, told_to INTEGER NOT NULL) WITHOUT ROWID;
    """,
    """
    CREATE TABLE untraced_sessions (
        agent TEXT NOT NULL, session_id TEXT NOT NULL, known_ns INTEGER NOT NULL,
        PRIMARY KEY (agent, session_id)
    ) WITHOUT ROWID;
    CREATE TABLE sink_levels (name TEXT PRIMARY KEY, content TEXT NOT NULL) WITHOUT ROWID;
    """,
    """
    CREATE TABLE foreign_spans (
        trace_id TEXT NOT NULL, span_id TEXT NOT NULL, taken_ns INTEGER NOT NULL,
        resource BLOB NOT NULL, scope BLOB NOT NULL, body BLOB NOT NULL, told_as TEXT,
        PRIMARY KEY (trace_id, span_id)
    ) WITHOUT ROWID;
    CREATE INDEX foreign_spans_waiting ON foreign_spans (trace_id) WHERE told_as IS NULL;
    CREATE INDEX foreign_spans_told_as ON foreign_spans (told_as);
    """,
    # What turns come to, so that `stats` need not read all spans. The columns are those of
    # `totals.Totals`; when they, or what they mean, change, drop the rows and set 'summed' to 0.
    """
    CREATE TABLE turn_sums (
        trace_id TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL,
        cwd TEXT, has_errors INTEGER NOT NULL,
        turns INTEGER, failed_turns INTEGER, calls INTEGER, failed_calls INTEGER, retries INTEGER,
        tool_calls INTEGER, failed_tool_calls INTEGER, input_tokens INTEGER, output_tokens INTEGER,
        cache_read_tokens INTEGER, cost_usd REAL, unpriced_calls INTEGER, lines_added INTEGER,
        lines_removed INTEGER, model_ns INTEGER, tools_ns INTEGER, human_ns INTEGER,
        agent_ns INTEGER, linked_exactly INTEGER, linked_by_inference INTEGER,
        told_by_transcript_alone INTEGER, orphans INTEGER,
        PRIMARY KEY (trace_id, kind, name)
    ) WITHOUT ROWID;
    CREATE INDEX turns_by_state ON turns (state);
    INSERT INTO counters VALUES ('summed', 0);
    """,
    # A row for all that was told of a turn at once; before it was one for each span.
    """
    ALTER TABLE outbox RENAME TO outbox_of_spans;
    CREATE TABLE outbox (
        id INTEGER PRIMARY KEY, sink TEXT NOT NULL, trace_id TEXT NOT NULL, refused TEXT,
        spans INTEGER NOT NULL, lengths BLOB NOT NULL, resource BLOB NOT NULL,
        checksum INTEGER, data BLOB NOT NULL
    );
    INSERT INTO outbox SELECT id, sink, trace_id, refused, 1,
        CAST(json_array(json_array(span_id, length(data))) AS BLOB), resource, checksum, data
        FROM outbox_of_spans;
    DROP TABLE outbox_of_spans;
    CREATE INDEX outbox_due ON outbox (sink, refused, id, spans);
    CREATE INDEX outbox_of_trace ON outbox (trace_id, sink);
    """,
    # A turn is summed up when it is told; of one that changes since then no sums are kept.
    """
    DELETE FROM turn_sums WHERE trace_id IN (SELECT trace_id FROM turns
        WHERE revision > (SELECT value FROM counters WHERE name = 'summed'));
    """,
)
