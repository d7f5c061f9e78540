INSERT INTO originals (key, body) VALUES (:key, :body)
