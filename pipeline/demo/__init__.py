"""The demo: rendered footage, questions, the HTML report."""
