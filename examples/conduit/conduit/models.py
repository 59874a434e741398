"""What clients send and get, in camelCase; RealWorld wraps everything once."""

from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, create_model
from pydantic.alias_generators import to_camel

Line = Annotated[str, Field(min_length=1, max_length=300)]
Text = Annotated[str, Field(min_length=1, max_length=20_000)]
Name = Annotated[str, Field(pattern=r"^[\w.-]{1,100}$")]


class Model(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")


def model(name: str, /, optional: bool = False, **members: Any) -> Any:
    return create_model(name, __base__=Model, **{k: (of | None, None) if optional else (of, ...) for k, of in members.items()})


class Filters(Model):
    tag: str | None = None
    author: str | None = None
    favorited: str | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    offset: Annotated[int, Field(ge=0, le=100_000)] = 0


class NewArticle(model("ArticleText", title=Line, description=Line, body=Text)):
    tag_list: Annotated[list[Line], Field(default_factory=list, max_length=20)]


Errors = model("Errors", errors=dict[str, list[str]])
Profile = model("Profile", username=str, bio=str | None, image=str | None, following=bool)
User = model("User", email=str, username=str, bio=str | None, image=str | None, token=str)
Comment = model("Comment", id=int, body=str, created_at=AwareDatetime, updated_at=AwareDatetime, author=Profile)
Article = model("Article", slug=str, title=str, description=str, body=str, tag_list=list[str], created_at=AwareDatetime,
                updated_at=AwareDatetime, favorited=bool, favorites_count=int, author=Profile)  # fmt: skip
OneUser, OneProfile = model("OneUser", user=User), model("OneProfile", profile=Profile)
OneArticle, OneComment = model("OneArticle", article=Article), model("OneComment", comment=Comment)
Articles = model("Articles", articles=list[Article], articles_count=int)
Comments, Tags = model("Comments", comments=list[Comment]), model("Tags", tags=list[str])

SignIn = model("SignIn", user=model("Login", email=Line, password=Line))
SignUp = model("SignUp", user=model("NewUser", email=Line, password=Line, username=Name))
UserChange = model("UserChange", optional=True, email=Line, username=Name, password=Line, bio=Line, image=Line)
ChangeUser, AddArticle = model("ChangeUser", user=UserChange), model("AddArticle", article=NewArticle)
ChangeArticle = model("ChangeArticle", article=model("ArticleChange", optional=True, title=Line, description=Line, body=Text))
AddComment = model("AddComment", comment=model("NewComment", body=Text))
