INSERT INTO events (key, body) VALUES (:key, :body)
