"""The web page of the preference store; the only home of gradio and fastapi."""
