"""`python -m serve_app`, the same as `neuron-serve`."""

from serve_app.cli.main import app

if __name__ == "__main__":
    app(prog_name="neuron-serve")
