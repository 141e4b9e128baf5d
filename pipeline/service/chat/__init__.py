"""OpenAI's chat completions: requests and errors of `/v1/chat/completions`."""
