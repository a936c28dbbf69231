"""`python -m disp_llm`, the same as `disp-llm`."""

from disp_llm.cli import main

main()
