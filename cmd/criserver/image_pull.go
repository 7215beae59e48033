package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"criserver/pkg/admin"
)

// credentials are the flags of who to be at a registry. Secrets do not come by the command line, which everybody sees.
type credentials struct {
	username                  string
	passwordStdin, tokenStdin bool
}

const (
	flagUsername      = "username"
	flagPasswordStdin = "password-stdin"
	flagTokenStdin    = "identity-token-stdin"
)

func (c *credentials) addFlags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVarP(&c.username, flagUsername, "u", "", "who to be at the registry, instead of what the daemon's configuration says")
	flags.BoolVar(&c.passwordStdin, flagPasswordStdin, false, "read the password from standard input")
	flags.BoolVar(&c.tokenStdin, flagTokenStdin, false, "read an OAuth2 refresh token from standard input")
	cmd.MarkFlagsRequiredTogether(flagUsername, flagPasswordStdin)
	cmd.MarkFlagsMutuallyExclusive(flagUsername, flagTokenStdin)
}

// maxSecret bounds what is read of a file that was named by mistake.
const maxSecret = 64 << 10

func (c *credentials) read(in io.Reader) (admin.Auth, error) {
	auth := admin.Auth{Username: c.username}
	if !c.passwordStdin && !c.tokenStdin {
		return auth, nil
	}
	if isTerminal(in) {
		return auth, errors.New("a secret is not read from a terminal, which would show it: redirect standard input to a file that has it")
	}
	data, err := io.ReadAll(io.LimitReader(in, maxSecret+1))
	if err != nil {
		return auth, fmt.Errorf("read secret: %w", err)
	}
	secret := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	if secret == "" || len(data) > maxSecret {
		return auth, errors.New("standard input has no secret, or one that is too long")
	}
	if c.tokenStdin {
		auth.IdentityToken = secret
	} else {
		auth.Password = secret
	}
	return auth, nil
}

func (c *imageCommands) pull() *cobra.Command {
	var who credentials
	cmd := c.command("pull NAME", "Pull an image, and print its ID", cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		auth, err := who.read(s.in)
		if err != nil {
			return err
		}
		p := s.progress(0, wordsOfPull)
		id, err := s.client.Pull(ctx, admin.PullRequest{Name: args[0], Auth: auth}, p.show)
		p.end(err == nil)
		if err != nil {
			return err
		}
		return s.result(admin.PullResponse{ID: id}, func(w io.Writer) { fmt.Fprintln(w, id) })
	})
	who.addFlags(cmd)
	return cmd
}

func (c *imageCommands) push() *cobra.Command {
	var who credentials
	cmd := c.command("push SOURCE [TARGET]", "Push an image, under another name if there is one, and print its digest in the registry",
		cobra.RangeArgs(1, 2), func(ctx context.Context, s *session, args []string) error {
			auth, err := who.read(s.in)
			if err != nil {
				return err
			}
			req := admin.PushRequest{Source: args[0], Auth: auth}
			if len(args) > 1 {
				req.Target = args[1]
			}
			p := s.progress(0, wordsOfPush)
			digest, err := s.client.Push(ctx, req, p.show)
			p.end(err == nil)
			if err != nil {
				return err
			}
			return s.result(admin.PushResponse{Digest: digest}, func(w io.Writer) { fmt.Fprintln(w, digest) })
		})
	who.addFlags(cmd)
	return cmd
}
