from cm_jax.cli import main

main()
