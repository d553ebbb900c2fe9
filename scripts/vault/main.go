// Command vault is HashiCorp's community server, CLI and Agent, unchanged.
package main

import (
	"os"

	"github.com/hashicorp/vault/command"
)

func main() { os.Exit(command.Run(os.Args[1:])) }
