package upload

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// Mount has the blob taken from one of the other repositories of the registry, if it has it.
func (u *Upload) Mount(ctx context.Context, e Target, from []string) (bool, error) {
	for _, repo := range from {
		mounted, err := u.begin(ctx, e, repo)
		if u.session != nil {
			u.abandon(ctx, e)
		}
		if mounted || err != nil {
			return mounted, err
		}
	}
	return false, nil
}

// abandon tells the registry that no bytes will come (distribution-spec, "Cancel a blob upload"). It forgets uploads by itself
// too, after some time.
func (u *Upload) abandon(ctx context.Context, e Target) {
	req, err := http.NewRequestWithContext(e.Scoped(ctx), http.MethodDelete, u.session.String(), http.NoBody)
	if err != nil {
		return
	}
	if resp, err := e.Do(req); err == nil {
		resp.Body.Close()
	}
}

// location is where an upload goes on. Registries behind a proxy are known to write their own idea of scheme and port;
// the endpoint's counts where the host is the same. Another host gets no credentials, as keyrings have one host.
func (e Target) location(resp *http.Response) (*url.URL, error) {
	to, err := resp.Location()
	if err != nil {
		return nil, errors.New("the registry does not say where to upload to")
	}
	to.User, to.Fragment = nil, ""
	if strings.EqualFold(to.Hostname(), e.Base.Hostname()) && (to.Scheme != e.Base.Scheme || portOf(to) == portOf(e.Base)) {
		to.Scheme, to.Host = e.Base.Scheme, e.Base.Host
	}
	if to.Scheme != "https" && to.Scheme != e.Base.Scheme {
		return nil, fmt.Errorf("upload is sent from %s to %s at %s, which is refused", e.Base.Scheme, to.Scheme, to.Host)
	}
	return to, nil
}

func portOf(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "http":
		return "80"
	}
	return "443"
}
