-- Turns that memory is to turn into facts once it has them.
ALTER TABLE orchestration.memory_outbox ADD COLUMN extract boolean NOT NULL DEFAULT false;
