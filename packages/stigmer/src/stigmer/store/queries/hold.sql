-- Another server holds the line of this attempt's worker now.
UPDATE executions SET worker = :holder WHERE no = :no AND epoch = :epoch AND finished_ms IS NULL
