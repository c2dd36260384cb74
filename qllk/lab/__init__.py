"""The notebooks' side: runs in threads, pictures as text, panels. Nothing else imports it."""
