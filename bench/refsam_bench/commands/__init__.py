"""What the subcommands of `refsam-bench` take and print, one file each."""
