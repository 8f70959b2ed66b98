"""The video API in OpenAI's words, over HTTP."""
