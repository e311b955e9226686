"""The HTTP server: OpenAI's and Anthropic's requests on one Engine, for several people at once, and a page to chat on.

app.create_app puts the parts together; front.py is the only part that touches the engine.
"""
