package credential

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// dockerConfig is what counts here of a config.json (docker CLI, "Configuration files").
type dockerConfig struct {
	Auths map[string]struct {
		Username      string `json:"username"`
		Password      string `json:"password"`
		Auth          string `json:"auth"`
		IdentityToken string `json:"identitytoken"`
		RegistryToken string `json:"registrytoken"`
	} `json:"auths"`
	CredHelpers map[string]string `json:"credHelpers"`
	CredsStore  string            `json:"credsStore"`
}

func parseDocker(documents []document) (*dockerConfig, error) {
	c := &dockerConfig{}
	if err := json.Unmarshal(documents[0].data, c); err != nil {
		return nil, fmt.Errorf("decode: %w", err) // which tells types and places, not values
	}
	return c, nil
}

// dockerFile is one such file.
type dockerFile struct {
	watched[*dockerConfig]
	helpers *helpers
}

// lookup finds the credentials for an image. A file that is not there has none.
func (f *dockerFile) lookup(ctx context.Context, image string) ([]Credential, []error) {
	config, err := f.get()
	if isMissing(err) {
		return nil, nil
	}
	source := "docker config " + f.path
	if err != nil {
		return nil, []error{fmt.Errorf("%s: %w", source, err)}
	}
	var found []Credential
	var problems []error
	add := func(c Credential, err error) {
		switch {
		case err != nil:
			problems = append(problems, fmt.Errorf("%s: %w", source, err))
		case !c.IsZero():
			found = append(found, c)
		}
	}
	helped := matching(config.CredHelpers, image)
	for _, key := range helped {
		add(f.helpers.ask(ctx, config.CredHelpers[key], key, source))
	}
	for _, key := range matching(config.Auths, image) {
		a := config.Auths[key]
		c, err := Auth{
			Username: a.Username, Password: a.Password, Auth: a.Auth, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken,
		}.Credential(source)
		if err != nil {
			err = fmt.Errorf("auths.%q: %w", key, err)
		}
		add(c, err)
	}
	if config.CredsStore != "" && len(helped) == 0 {
		host, _ := splitPath(image)
		if host == dockerHub {
			host = "https://index.docker.io/v1/"
		}
		add(f.helpers.ask(ctx, config.CredsStore, host, source))
	}
	return found, problems
}

// helpers are the programs docker-credential-*.
type helpers struct{ flights flights[Credential] }

// notFound is how helpers say that they know nothing (docker-credential-helpers, credentials/error.go).
const notFound = "credentials not found in native keychain"

// ask gets what a helper has for a server. Equal questions at the same time are one.
func (h *helpers) ask(ctx context.Context, helper, server, source string) (Credential, error) {
	name := "docker-credential-" + helper
	if strings.ContainsAny(helper, "/\x00") {
		return Credential{}, fmt.Errorf("%q is not the name of a credential helper", helper)
	}
	source += " (" + name + ")"
	return h.flights.do(ctx, source+"\x00"+server, func(ctx context.Context) (Credential, error) {
		c, err := askHelper(ctx, name, server, source)
		if err != nil {
			return c, fmt.Errorf("%s for %s: %w", name, server, err)
		}
		return c, nil
	})
}

// askHelper speaks the helpers' protocol: the server's URL on standard input, JSON or a message on standard output.
func askHelper(ctx context.Context, name, server, source string) (Credential, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return Credential{}, err
	}
	out, err := program{path: path, args: []string{"get"}, env: os.Environ(), input: []byte(server)}.run(ctx)
	if err != nil {
		message := strings.TrimSpace(string(out))
		if strings.HasPrefix(message, notFound) {
			return Credential{}, nil
		}
		if len(message) > 0 && len(message) <= maxComplaint && !strings.ContainsAny(message, "{}") {
			err = fmt.Errorf("%w: %s", err, scrub(message, nil))
		}
		return Credential{}, err
	}
	var answer struct{ Username, Secret string }
	if json.Unmarshal(out, &answer) != nil {
		return Credential{}, errAnswer
	}
	c := Credential{Source: source, username: answer.Username, password: answer.Secret}
	if answer.Username == "<token>" { // the helpers' mark of an identity token
		c = Credential{Source: source, refresh: answer.Secret}
	}
	return c, nil
}
