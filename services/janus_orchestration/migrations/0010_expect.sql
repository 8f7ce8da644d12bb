-- The owner of a run knows what it and its thread are like: nobody else changes them, but to cancel the run or to take
-- it over. So a commit locks both and compares them ahead of its writes, and has nothing to read.
--
-- Raises JN001 when one of them is another than expected; the thread may be left out. Locks the thread before the run.
CREATE FUNCTION orchestration.expect(
    its_tenant text, its_run text, its_epoch bigint, its_revision bigint, its_state text,
    its_thread text, its_last_position bigint, its_memory_position bigint
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF its_thread IS NOT NULL THEN
        PERFORM 1 FROM orchestration.thread t WHERE t.tenant = its_tenant AND t.id = its_thread
            AND t.last_position = its_last_position AND t.memory_position = its_memory_position
            AND t.active_run = its_run FOR UPDATE;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'the thread is another than expected' USING ERRCODE = 'JN001';
        END IF;
    END IF;
    PERFORM 1 FROM orchestration.run r WHERE r.tenant = its_tenant AND r.id = its_run
        AND r.epoch = its_epoch AND r.revision = its_revision AND r.state = its_state FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the run is another than expected' USING ERRCODE = 'JN001';
    END IF;
END
$$;
