"""`python -m disp_llm`, the same as `disp-llm`."""

from disp_llm.cli.main import main

main()
