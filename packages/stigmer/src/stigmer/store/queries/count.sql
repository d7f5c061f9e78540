-- In that state, of one organisation, or with '' of all.
SELECT count(*) FROM executions WHERE state = :state AND (:organisation = '' OR organisation = :organisation)
